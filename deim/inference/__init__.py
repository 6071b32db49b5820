"""From a trained detector and images to detections."""
