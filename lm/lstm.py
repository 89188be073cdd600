"""placeholder"""
import math, torch
from torch import nn
from lm.dropout import keep_mask
class WeightDropLSTM(nn.Module):
    def __init__(self, cell, input_size, hidden_size, weight_drop=0.0, kernel="auto", precision="fp32"):
        super().__init__()
        g = {"LSTM": 4, "GRU": 3}.get(cell, 1)
        self.cell, self.hidden_size, self.weight_drop = cell, hidden_size, weight_drop
        k = 1 / math.sqrt(hidden_size)
        P = lambda *s: nn.Parameter(torch.empty(*s).uniform_(-k, k))
        self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0 = P(g*hidden_size, input_size), P(g*hidden_size, hidden_size), P(g*hidden_size), P(g*hidden_size)
    def forward(self, x, state):
        w = self.weight_hh_l0
        if self.training and self.weight_drop:
            w = w * keep_mask(w.shape, self.weight_drop, w.device, w.dtype)
        p = [self.weight_ih_l0, w, self.bias_ih_l0, self.bias_hh_l0]
        f = {"LSTM": torch._VF.lstm, "GRU": torch._VF.gru, "RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu}[self.cell]
        if self.cell == "LSTM":
            o, h, c = f(x, [s.unsqueeze(0) for s in state], p, True, 1, 0.0, self.training, False, False)
            return o, (h[0], c[0])
        o, h = f(x, state[0].unsqueeze(0), p, True, 1, 0.0, self.training, False, False)
        return o, (h[0],)
