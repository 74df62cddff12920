"""Configuration, storage, jobs, Ray and tracking: the parts without machine learning."""
