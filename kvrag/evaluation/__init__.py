"""What reuse costs in quality: metrics, the same questions put to every method, and the user's own questions."""
