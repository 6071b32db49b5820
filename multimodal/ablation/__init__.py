"""The ablation of the text: does it help, or only the training that comes with it?"""
