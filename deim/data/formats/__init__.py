"""Annotation files: COCO, YOLO and Pascal VOC read into arrays, and written."""
