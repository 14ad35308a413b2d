from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate_together as evaluate_together
from .measurement import SetMeasurement as SetMeasurement
from .measurement import undefined_metrics as undefined_metrics
from .records import CaseRecord as CaseRecord
from .records import MapMaker as MapMaker

__all__ = ["CaseRecord", "Evaluation", "MapMaker", "SetMeasurement", "evaluate_together", "undefined_metrics"]
