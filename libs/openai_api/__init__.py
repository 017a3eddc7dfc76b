"""OpenAI's requests and answers in the fleet's words: what the gateway and the offline queue share.

Pure but for `text_questions` and `orders`, which may ask a router's tokenizer on the way.
"""
