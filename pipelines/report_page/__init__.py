"""Figures and pages of reports: one HTML file each."""
