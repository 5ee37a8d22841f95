"""The experiment on handwritten digits: data, two small detectors, comparisons and ablations."""
