"""Rewards beside those of tasks: functions of the user's own, and judges."""
