"""Coverage-guided fuzzing of everything that reads bytes of strangers, with atheris."""
