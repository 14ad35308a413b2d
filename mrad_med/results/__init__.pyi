from .case_result import CaseResult as CaseResult
from .handlers import ResultCollector as ResultCollector, ResultSaver as ResultSaver, run_evaluator as run_evaluator
from .overlays import draw_montage as draw_montage, draw_overlay as draw_overlay
from .tables import slice_rows as slice_rows
from .writer import ResultWriter as ResultWriter

__all__ = [
    "CaseResult",
    "ResultCollector",
    "ResultSaver",
    "ResultWriter",
    "draw_montage",
    "draw_overlay",
    "run_evaluator",
    "slice_rows",
]
