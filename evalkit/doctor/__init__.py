"""One dry run of a study: what would be wrong, slow or too large, and what to change.

Each check is a function that returns a :class:`~evalkit.doctor.finding.Finding`; ``examination``
makes them one after the other on a :class:`~evalkit.doctor.subject.Subject`, first on a few samples
and then on one batch.
"""

from evalkit.doctor.examination import Report, examine
from evalkit.doctor.finding import Finding, Verdict
from evalkit.doctor.subject import Subject, of_task, of_trajectory

__all__ = ["Finding", "Report", "Subject", "Verdict", "examine", "of_task", "of_trajectory"]
