"""From text to verdict: bundles, the registry, the detector and batch scoring."""
