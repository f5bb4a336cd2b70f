"""MSMF: several modalities on several scales, fused for two tasks; one file a module of the paper."""
