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

__all__ = ["BundleWorkflow", "config_files", "find_bundle", "literal", "plain_errors", "read_bundle"]


def find_bundle(name: str | os.PathLike[str]) -> Path:
    """Return the directory of a bundle.

    The config of a bundle is code. A name therefore never means a directory of the working directory.

    Args:
        name: name of an included bundle such as ``"mrad_tf"``; or a directory with ``configs/``, as a `Path`, or as a
            string with a slash such as ``"./my_bundle"``.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists the included bundles.
    """
    package = Path(__file__).parent
    # An installed package contains the bundles; in a checkout they are beside the package.
    included = (package / "bundles", package.parent / "bundles")
    for folder in [Path()] if _is_path(name) else included:
        if (folder / name / "configs").is_dir():
            return folder / name
    known = sorted({path.parent.name for folder in included for path in folder.glob("*/configs")})
    advice = "" if _is_path(name) else f"; write a directory with a slash: .{os.sep}{name}"
    raise FileNotFoundError(
        f"{name} is not a bundle directory (it has no configs/); included bundles are {', '.join(known)}{advice}"
    )


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
    known = {path.stem.removeprefix("inference_"): path for path in sorted(folder.glob("inference_*.json"))}
    missing = [name for name in profiles if name not in known]  # "../x" is not a name
    if missing:
        raise FileNotFoundError(f"{root.name} has no profile {', '.join(missing)}; it has {', '.join(known) or 'none'}")
    return [folder / "inference.json", *(known[name] for name in profiles)]


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
        overrides: values that take precedence over all configs. They are used as they are, see `literal`.

    Raises:
        FileNotFoundError: there is no such bundle, profile or config.
        KeyError: the config has no value with the name of an override.
        ValueError: the config was written for an older version, or an override describes an object.
    """
    root = find_bundle(bundle)
    files = config_files(root, profiles)
    if config is not None:
        further = {path.stem: path for path in (root / "configs").glob("*.json")}
        if config not in further:
            raise FileNotFoundError(f"{root.name} has no configs/{config}.json; it has {', '.join(sorted(further))}")
        files.append(further[config])
    parser = ConfigParser()
    parser.read_config([str(path) for path in files])
    parser.read_meta(str(root / "configs" / "metadata.json"))
    values = {"bundle_root": str(root), **(overrides or {})}
    check_values(parser.get(), values)
    _set_values(parser, values)
    parser.update(recorded(parser.get(), profiles, overrides or {}))
    return parser


def _set_values(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    parser.update({name: literal(value) for name, value in values.items()})


def check_values(config: Mapping[str, Any], values: Iterable[str]) -> None:
    """Raise an error if a config lacks a value that is to be set, or was written for an older version.

    Args:
        config: content of the config.
        values: names of the values to set, in MONAI's syntax: ``a#b``, ``a::b``, ``+a`` and ``~a``.

    Raises:
        KeyError: the config has no such value; if the value was renamed, the message states the new name. Or a name
            with ``#`` is below a value that has no parts.
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
    parents = {name: re.sub("(::|#)[^:#]*$", "", name) for name in names if len(re.split("::|#", name)) > 1}
    plain = [name for name, parent in parents.items() if not isinstance(ConfigParser(config).get(parent), (dict, list))]
    if plain:
        raise KeyError(f"this bundle has no value named {', '.join(plain)}: what is before the last # has no parts")


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


def literal(value: Any) -> Any:
    """Return what makes a config use a value as it is.

    In strings of a config, also in lists and dicts, MONAI evaluates ``$``, follows ``@`` and ``%``, and replaces ``#``.

    Args:
        value: value of any type.

    Raises:
        ValueError: the value contains a dict with ``_target_``, which would have MONAI call a function.
    """
    if _describes_object(value):
        raise ValueError("a value cannot contain _target_, which calls a function: edit a copy of the bundle instead")
    # Of a component, MONAI calls the target. Values of other types are used as they are.
    return {"_target_": _Literal(value)} if isinstance(value, (str, list, dict)) else value


def _describes_object(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_describes_object, value.values()))
    return isinstance(value, (list, tuple, set, frozenset)) and any(map(_describes_object, value))


class _Literal:
    """A function that returns a value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)


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
        values: values that take precedence over those of the config. They are used as they are, see `literal`.
        **keywords: arguments of `ConfigWorkflow`, and values as in ``values``, but in MONAI's syntax: ``$`` is
            evaluated, and ``@`` and ``%`` are followed.

    Raises:
        FileNotFoundError: there is no such directory, profile or file.
        KeyError: the config has no value with the name of an override.
        ValueError: the config was written for an older version, or a value describes an object.
    """

    def __init__(
        self,
        config_file: str | Sequence[str],
        *,
        workflow_type: str | None = "infer",
        profiles: Sequence[str] = (),
        values: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        if isinstance(config_file, (str, os.PathLike)) and not _is_config_file(config_file):
            config_file = [str(path) for path in config_files(find_bundle(config_file), profiles)]
        first = Path(config_file if isinstance(config_file, (str, os.PathLike)) else config_file[0])
        values = dict(values or {})
        if first.parent.name == "configs" and "bundle_root" not in keywords:
            values.setdefault("bundle_root", str(first.parent.parent))
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        given = {name: value for name, value in keywords.items() if name not in own} | values
        config = ConfigParser.load_config_files(config_file)
        check_values(config, given)
        with _without_notice(keywords.get("logging_file") is False):
            super().__init__(
                config_file=config_file, workflow_type=workflow_type, **recorded(config, profiles, given), **keywords
            )
        _set_values(self.parser, values)

    def initialize(self) -> Any:
        """Initialize as in MONAI; errors are those of the component that failed."""
        with plain_errors():
            return super().initialize()

    def run(self) -> Any:
        """Run as in MONAI; errors are those of the component that failed."""
        with plain_errors():
            return super().run()


def _is_config_file(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() in (".json", ".yaml", ".yml") and Path(path).is_file()


def _is_path(name: str | os.PathLike[str]) -> bool:
    """Return whether a bundle is given by its directory, and not by its name."""
    if isinstance(name, os.PathLike) or name in (os.curdir, os.pardir) or Path(name).drive:
        return True
    return any(separator in name for separator in (os.sep, os.altsep) if separator)
