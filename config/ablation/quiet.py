# An inserted layer starts as nearly nothing
from config.ablation.copy import *

out_dir = 'out/ablation/quiet.1'
inserted = 'quiet'
