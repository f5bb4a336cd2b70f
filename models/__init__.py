"""Models and text encoders: arrays in, probabilities out; nothing here knows a date, a file or an order."""
