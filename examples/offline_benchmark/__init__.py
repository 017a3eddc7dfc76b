"""Multiple-choice questions, answered offline, with an accuracy report."""
