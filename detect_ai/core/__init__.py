"""Configuration, storage, jobs, Ray and tracking: the code without machine learning."""
