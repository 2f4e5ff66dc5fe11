"""The report: one self-contained HTML file that shows a training and its images."""

LOSSLESS = 101  # WebP quality: OpenCV writes lossless above 100
