"""The contract every sequence mixer obeys, and what serves all of them: states, specs, raggedness, taps, errors."""
