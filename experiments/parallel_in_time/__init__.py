"""Newton's method over time: its iterations beside Lyapunov exponents, sequential depth, and times."""
