"""The chain from stored events to logged trades: store, scheduler, window, forecaster, broker, ledger."""
