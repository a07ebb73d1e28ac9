"""The reward: one contract with declared abilities, nDCG under a retriever, prices for useless
text, and the credit engine that values an answer's phrases by it.
"""

from ospo.reward.protocol import Counts, PlainReward, Reward, as_reward

__all__ = ["Counts", "PlainReward", "Reward", "as_reward"]
