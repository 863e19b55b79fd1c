"""What one does with a trained run: record data sets, watch episodes, draw, solve puzzles."""
