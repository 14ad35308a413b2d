"""Bundle directories: how they are found, read, checked and run."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

__all__ = ["BundleWorkflow", "config_files", "find_bundle", "plain_errors", "read_bundle", "root_of_config"]


def find_bundle(name: str | os.PathLike[str]) -> Path:
    """Return the directory of a bundle.

    Args:
        name: directory with ``configs/``, or name of one of the project's bundles such as ``"mrad_tf"``.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists the project's bundles.
    """
    package = Path(__file__).parent
    # An installed package contains the bundles; in a checkout they are beside the package.
    folders = (Path(), package / "bundles", package.parent / "bundles")
    for folder in folders:
        if (folder / name / "configs").is_dir():
            return folder / name
    known = sorted({path.parent.name for folder in folders[1:] for path in folder.glob("*/configs")})
    raise FileNotFoundError(
        f"{name} is not a bundle directory (it has no configs/); included bundles are {', '.join(known)}"
    )


def root_of_config(folder: str) -> str:
    """Return the directory of the bundle whose config is evaluated, as the config's value ``bundle_root``.

    MONAI does not pass the path of a config to it. The workflow that evaluates the config knows the path. It is found
    among the callers of this function.

    Args:
        folder: bundle directory, relative to the working directory; used if no workflow is among the callers.

    Raises:
        FileNotFoundError: no workflow is among the callers, and ``folder`` is not a bundle directory.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            configs = Path(caller.config_root_path)
            return str(configs.parent if configs.name == "configs" else configs)
        frame = frame.f_back
    if not (Path(folder) / "configs").is_dir():
        raise FileNotFoundError(
            f"the bundle directory {folder} of this config is not in {Path.cwd()}. Give the directory that contains "
            "the folder configs: --bundle_root DIRECTORY, or the value bundle_root of the config"
        )
    return folder


# Keys of configs up to version 0.1 with their new names. Each had two meanings, or repeated a value of the view.
RENAMED = {
    "strict": "strict_geometry (the slices of a series) or strict_dataset (the problems of a labeled set)",
    "options": "view",
    "pictures": "view",
    "result_settings": "writer",
}
_PLACES = ("bundle_root", "dataset_dir", "output_dir")  # not recorded: paths may name a patient
RENAMED_IN_EVALUATION = {"dataset": "dataset_name", "threshold": "dice_threshold"}


def config_files(root: Path, profiles: Sequence[str] = ()) -> list[Path]:
    """Return the config files of a bundle for inference: ``inference.json``, and the file of each profile.

    Args:
        root: directory of the bundle.
        profiles: names ``<name>`` of its files ``configs/inference_<name>.json``.

    Raises:
        FileNotFoundError: the bundle has no such profile; the message lists its profiles.
    """
    folder = root / "configs"
    files = [folder / f"inference_{name}.json" for name in profiles]
    missing = [name for name, file in zip(profiles, files, strict=True) if not file.is_file()]
    if missing:
        known = sorted(path.stem.removeprefix("inference_") for path in folder.glob("inference_*.json"))
        raise FileNotFoundError(f"{root.name} has no profile {', '.join(missing)}; it has {', '.join(known) or 'none'}")
    return [folder / "inference.json", *files]


def read_bundle(
    bundle: str | os.PathLike[str],
    *,
    profiles: Sequence[str] = (),
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConfigParser:
    """Return the config of a bundle; nothing is instantiated yet.

    Args:
        bundle: bundle directory or name, see `find_bundle`.
        profiles: names of profiles, see `config_files`; later ones take precedence over earlier ones.
        config: name of a further config that extends ``inference.json``, such as ``"evaluate"``.
        overrides: values that take precedence over all configs.

    Raises:
        FileNotFoundError: there is no such bundle, profile or config.
        KeyError: the config has no value with the name of an override.
        ValueError: the config was written for an older version.
    """
    root = find_bundle(bundle)
    files = config_files(root, profiles)
    if config is not None:
        files.append(root / "configs" / f"{config}.json")
    parser = ConfigParser()
    parser.read_config([str(path) for path in files])
    parser.read_meta(str(root / "configs" / "metadata.json"))
    values = {"bundle_root": str(root), **(overrides or {})}
    check_values(parser.get(), values)
    parser.update({**values, **recorded(parser.get(), profiles, overrides or {})})
    return parser


def check_values(config: Mapping[str, Any], values: Iterable[str]) -> None:
    """Raise an error if a config lacks a value that is to be set, or was written for an older version.

    Args:
        config: content of the config.
        values: names of the values to set, in MONAI's syntax: ``a#b``, ``a::b``, ``+a`` and ``~a``.

    Raises:
        KeyError: the config has no such value; if the value was renamed, the message states the new name.
        ValueError: the config has a key of an older version.
    """
    old = [name for name in RENAMED if name in config] + ["dataset"] * isinstance(config.get("dataset"), str)
    renamed = {**RENAMED, **(RENAMED_IN_EVALUATION if "evaluation" in config else {})}
    if old:
        news = "; ".join(f"{name} is now {(RENAMED | RENAMED_IN_EVALUATION)[name]}" for name in old)
        raise ValueError(f"this config was written for an older version: {news}. Copy the bundle again and edit it")
    names = {name: re.split("::|#", name.lstrip("+~"))[0] for name in values}
    for name, top in names.items():
        if top in renamed:
            raise KeyError(f"{name} is now {renamed[top]}")
    unknown = [name for name, top in names.items() if top not in config and not name.startswith("+")]
    if unknown:
        raise KeyError(f"this bundle has no value named {', '.join(unknown)}; it has {', '.join(sorted(config))}")


def recorded(config: Mapping[str, Any], profiles: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values ``profiles`` and ``overrides``, which record how a run was called, if the config has them.

    Args:
        config: content of the config.
        profiles: names of the profiles in use.
        overrides: values that were given by the caller.
    """
    given = {name: str(value) for name, value in overrides.items() if name not in _PLACES}
    # A mapping that is not a dict, because MONAI evaluates strings in dicts.
    values = {"profiles": tuple(profiles), "overrides": MappingProxyType(given)}
    return {name: value for name, value in values.items() if name in config}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the original error of a config's component instead of MONAI's error that its instantiation failed."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException = error
        while (
            str(cause).startswith(("Failed to instantiate component", "Failed to evaluate"))
            and cause.__cause__ is not None
        ):
            cause = cause.__cause__
        if cause is error:
            raise
        raise cause from cause.__cause__


@contextmanager
def _without_notice(is_wanted: bool) -> Iterator[None]:
    """Suppress MONAI's warning that no logging file is read, if none is wanted."""
    notices = logging.getLogger("monai.bundle.workflows")
    level = notices.level
    if is_wanted:
        notices.setLevel(logging.ERROR)
    try:
        yield
    finally:
        notices.setLevel(level)


class BundleWorkflow(ConfigWorkflow):
    """A `monai.bundle.ConfigWorkflow` whose ``config_file`` may be a bundle directory.

    For a directory, its ``configs/inference.json`` is run. By default, ``bundle_root`` is the bundle directory that has
    the config. A copied bundle therefore uses its own files.

    Args:
        config_file: bundle directory or name, config file, or several config files.
        workflow_type: type of the workflow in MONAI, such as ``"infer"`` or ``"train"``.
        profiles: names of profiles, see `config_files`; only used for a bundle directory.
        **keywords: arguments of `ConfigWorkflow`, and values that take precedence over those of the config.

    Raises:
        FileNotFoundError: there is no such directory, profile or file.
        KeyError: the config has no value with the name of an override.
        ValueError: the config was written for an older version.
    """

    def __init__(
        self,
        config_file: str | Sequence[str],
        *,
        workflow_type: str | None = "infer",
        profiles: Sequence[str] = (),
        **keywords: Any,
    ) -> None:
        if isinstance(config_file, (str, os.PathLike)) and not Path(config_file).is_file():
            config_file = [str(path) for path in config_files(find_bundle(config_file), profiles)]
        first = Path(config_file if isinstance(config_file, (str, os.PathLike)) else config_file[0])
        if first.parent.name == "configs":
            keywords.setdefault("bundle_root", str(first.parent.parent))
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        given = {name: value for name, value in keywords.items() if name not in own}
        config = ConfigParser.load_config_files(config_file)
        check_values(config, given)
        with _without_notice(keywords.get("logging_file") is False):
            super().__init__(
                config_file=config_file, workflow_type=workflow_type, **recorded(config, profiles, given), **keywords
            )

    def initialize(self) -> Any:
        """Initialize as in MONAI; errors are those of the component that failed."""
        with plain_errors():
            return super().initialize()

    def run(self) -> Any:
        """Run as in MONAI; errors are those of the component that failed."""
        with plain_errors():
            return super().run()
