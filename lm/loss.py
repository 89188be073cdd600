"""placeholder"""
import torch
import torch.nn.functional as F
def linear_cross_entropy(h, weight, bias, target, precision="fp32"):
    return F.cross_entropy(F.linear(h, weight, bias), target)
@torch.no_grad()
def sum_cross_entropy(h, weight, bias, target, precision="fp32"):
    return F.cross_entropy(F.linear(h, weight, bias), target, reduction="none").double().sum()
