"""MONAI's bundle workflow that also takes a bundle directory, and where the project's bundles are."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

__all__ = ["BundleWorkflow", "config_files", "find_bundle", "plain_errors", "read_bundle"]


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


def config_files(root: Path, profiles: Sequence[str] = ()) -> list[Path]:
    """Return the config files of a bundle for inference: the common one, and one for each kind of image.

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
    bundle: str | os.PathLike[str], *, profiles: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> ConfigParser:
    """Return the config of a bundle for inference, of which nothing is instantiated yet; ``bundle_root`` is set.

    Args:
        bundle: see `find_bundle`.
        profiles: see `config_files`; later ones come before earlier ones.
        overrides: values that come before all of them.

    Raises:
        FileNotFoundError: there is no such bundle or profile.
        KeyError: an override that the bundle does not know.
    """
    root, overrides = find_bundle(bundle), dict(overrides or {})
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(root, profiles)])
    parser.read_meta(str(root / "configs" / "metadata.json"))
    unknown = [name for name in overrides if name not in parser]
    if unknown:
        raise KeyError(f"bundle {root.name} has no value named {', '.join(unknown)}; it has {sorted(parser.get())}")
    parser.update({"bundle_root": str(root), **overrides})
    return parser


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


class BundleWorkflow(ConfigWorkflow):
    """A `monai.bundle.ConfigWorkflow` whose ``config_file`` may be a bundle directory.

    A directory stands for its ``configs/inference.json``, and becomes the ``bundle_root`` unless one is given.

    Args:
        config_file: a bundle directory, a config file, or several config files.
        workflow_type: as in MONAI; inference by default.
        **keywords: as in MONAI, and values that override the config's.

    Raises:
        FileNotFoundError: there is no such directory or file.
        KeyError: an override that the config does not know.
    """

    def __init__(
        self, config_file: str | Sequence[str], *, workflow_type: str | None = "infer", **keywords: Any
    ) -> None:
        if isinstance(config_file, (str, os.PathLike)) and not Path(config_file).is_file():
            root = find_bundle(config_file)
            config_file = str(root / "configs" / "inference.json")
            keywords.setdefault("bundle_root", str(root))
        known = ConfigParser.load_config_files(config_file)
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        unknown = [name for name in keywords if re.split("::|#", name.lstrip("+~"))[0] not in {*known, *own}]
        if unknown:
            raise KeyError(f"this bundle has no value named {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        super().__init__(config_file=config_file, workflow_type=workflow_type, **keywords)

    def initialize(self) -> Any:
        """Initialize as in MONAI, with plain errors."""
        with plain_errors():
            return super().initialize()

    def run(self) -> Any:
        """Run as in MONAI, with plain errors."""
        with plain_errors():
            return super().run()
