from .evaluation import Evaluation as Evaluation, evaluate_together as evaluate_together
from .measurement import SetMeasurement as SetMeasurement, undefined_metrics as undefined_metrics
from .records import CaseRecord as CaseRecord, MapMaker as MapMaker

__all__ = ["CaseRecord", "Evaluation", "MapMaker", "SetMeasurement", "evaluate_together", "undefined_metrics"]
