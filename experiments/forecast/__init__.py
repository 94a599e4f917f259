"""Forecasts of two series: a day of hourly weather, and the months of an airline."""
