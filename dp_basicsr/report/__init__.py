"""The report: one HTML file that shows a training and its images, with nothing to install and no network."""

LOSSLESS = 101  # quality: OpenCV writes lossless WebP above 100
