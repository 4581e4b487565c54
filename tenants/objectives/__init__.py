"""Objectives of recovery: pure rules of what is in force and what was kept."""
