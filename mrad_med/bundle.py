"""MONAI's bundle workflow that also takes a bundle directory, and where the project's bundles are."""

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
        name: a directory with ``configs/``, or the name of one of the project's bundles such as ``"mrad_tf"``.

    Raises:
        FileNotFoundError: there is no such bundle; lists the project's.
    """
    package = Path(__file__).parent
    # Installed packages carry the bundles inside; in a checkout they lie beside the package.
    folders = (Path(), package / "bundles", package.parent / "bundles")
    for folder in folders:
        if (folder / name / "configs").is_dir():
            return folder / name
    known = sorted({path.parent.name for folder in folders[1:] for path in folder.glob("*/configs")})
    raise FileNotFoundError(f"{name} is no bundle directory (it has no configs/); the project's are {', '.join(known)}")


def root_of_config(folder: str) -> str:
    """Return the bundle directory of the config that asks for it, as its ``bundle_root``.

    MONAI does not pass the path of a config on to it. The workflow that evaluates the config has the path, and is among
    the callers of this function.

    Args:
        folder: directory to take where no workflow is among the callers, relative to the working directory.

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


# Keys of configs up to version 0.1 and what they are now: each had two meanings, or repeated what the view says.
RENAMED = {
    "strict": "strict_geometry (the slices of a series) or strict_dataset (the problems of a labeled set)",
    "options": "view",
    "pictures": "view",
    "result_settings": "writer",
}
_PLACES = ("bundle_root", "dataset_dir", "output_dir")  # not recorded: paths may name a patient
RENAMED_IN_EVALUATION = {"dataset": "dataset_name", "threshold": "dice_threshold"}


def config_files(root: Path, profiles: Sequence[str] = ()) -> list[Path]:
    """Return the config files of a bundle for inference: the common one, and one for each kind of images.

    Args:
        root: directory of the bundle.
        profiles: names of its ``configs/inference_<name>.json``.

    Raises:
        FileNotFoundError: the bundle has no such profile; lists those it has.
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
    """Return the config of a bundle, of which nothing is instantiated yet.

    Args:
        bundle: see `find_bundle`.
        profiles: see `config_files`; later ones take precedence over earlier ones.
        config: name of a further config that is read on top of that for inference, such as ``"evaluate"``.
        overrides: values that take precedence over all of them.

    Raises:
        FileNotFoundError: there is no such bundle, profile or config.
        KeyError: an override that the bundle does not know.
        ValueError: the config is of an older version.
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
    """Refuse values that a config does not know, and a config of an older version.

    Args:
        config: content of the config.
        values: names of the values to be set; ``a#b``, ``a::b``, ``+a`` and ``~a`` as in MONAI.

    Raises:
        KeyError: the config has no such value; names the new one where it was renamed.
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
    """Return what a run records of how it was called, for a config that has a place for it.

    Args:
        config: content of the config.
        profiles: names of the profiles in use.
        overrides: values that were given.
    """
    given = {name: str(value) for name, value in overrides.items() if name not in _PLACES}
    # A mapping that is not a dict: MONAI would evaluate the strings in it.
    values = {"profiles": tuple(profiles), "overrides": MappingProxyType(given)}
    return {name: value for name, value in values.items() if name in config}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a component of a config raised, instead of MONAI's message that instantiating it failed."""
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
    """Keep MONAI from a warning that no logging file is read, where none is wanted."""
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

    A directory is run by its ``configs/inference.json``. The ``bundle_root`` is the directory that the config is in,
    unless one is given, so that a copied bundle uses its own files.

    Args:
        config_file: a bundle directory, a config file, or several config files.
        workflow_type: as in MONAI; inference by default.
        profiles: see `config_files`; only for a bundle directory.
        **keywords: arguments of `ConfigWorkflow`, and values that take precedence over those of the config.

    Raises:
        FileNotFoundError: there is no such directory, profile or file.
        KeyError: an override that the config does not know.
        ValueError: the config is of an older version.
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
        """Initialize as in MONAI, with plain errors."""
        with plain_errors():
            return super().initialize()

    def run(self) -> Any:
        """Run as in MONAI, with plain errors."""
        with plain_errors():
            return super().run()
