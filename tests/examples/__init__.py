"""Tests of the examples, with the libraries they are for."""
