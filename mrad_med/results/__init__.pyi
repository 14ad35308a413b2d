from .case_result import CaseResult as CaseResult
from .handlers import ResultCollector as ResultCollector
from .handlers import ResultSaver as ResultSaver
from .overlays import draw_montage as draw_montage
from .overlays import draw_overlay as draw_overlay
from .tables import slice_rows as slice_rows
from .writer import ResultWriter as ResultWriter

__all__ = ["CaseResult", "ResultCollector", "ResultSaver", "ResultWriter", "draw_montage", "draw_overlay", "slice_rows"]
