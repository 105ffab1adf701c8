"""Tests of the packages; helpers that several of them share are in `tests.support`."""
