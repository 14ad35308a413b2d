"""Bundle workflows that the commands run."""

from __future__ import annotations

import argparse
from typing import Any

import mrad_med

__all__ = ["build_workflow", "run_workflow"]


def build_workflow(
    options: argparse.Namespace, name: str, *, tracking: str | None = None, **values: Any
) -> mrad_med.BundleWorkflow:
    """Return the workflow of one config of a bundle; every config except ``train`` extends ``inference.json``.

    Args:
        options: options of the command: ``bundle``, ``output_dir`` and ``overrides``.
        name: name of the config in ``configs/``, without ``.json``.
        tracking: name of MONAI's settings for experiment tracking, such as ``"mlflow"``; None tracks nothing.
        **values: further values of the config; ``overrides`` take precedence.

    Raises:
        FileNotFoundError: there is no such bundle, or it has no such config.
    """
    root = mrad_med.bundle.find_bundle(options.bundle)
    config = root / "configs" / f"{name}.json"
    if not config.is_file():
        raise FileNotFoundError(f"{root} has no configs/{name}.json; choose a bundle with one, such as mrad_ft")
    values |= {"bundle_root": str(root), **options.overrides}
    if options.output_dir:
        values["output_dir"] = options.output_dir
    if name == "train":
        return mrad_med.BundleWorkflow([str(config)], workflow_type="train", values=values, tracking=tracking)
    return mrad_med.BundleWorkflow([str(root / "configs" / "inference.json"), str(config)], values=values)


def run_workflow(workflow: mrad_med.BundleWorkflow) -> None:
    """Initialize, run and finalize a workflow."""
    workflow.initialize()
    workflow.run()
    workflow.finalize()
