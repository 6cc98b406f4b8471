"""Distillation: a student learns a teacher's distributions instead of, or beside, the text itself."""
