"""backtrader strategies that read ``self.data.signal`` and ``self.data.p_up`` beside the close."""
