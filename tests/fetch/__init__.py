"""Tests of fetch_ads.py."""
