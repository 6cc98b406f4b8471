"""What makes a course of the kit: exercises and their checks, predictions, claims, and the commands around them."""
