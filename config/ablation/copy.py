# The paper: copied layers, a random one inserted after every third
from config.ablation.base import *

out_dir = 'out/ablation/copy.1'
