"""What a client may ask a router about text, without any request being made of it.

Core request and reply; stateless, so that any router of the queue group may answer. Lost: the
client asks again, which is always safe.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from libs.contracts.online import MESSAGES_MAX, TOOLS_MAX, ChatMessage, RejectReason, TokenId
from libs.contracts.wire import Codec, Message, WireJson


class TokenizeText(Message):
    """Asks for the token ids that a submission with this prompt would have.

    Sent by a client, with a reply subject, to `text(alias)`. Handled by one router of the queue
    group. Lost: the client asks again. Doubled: answered again.
    """

    type: Literal["tokenize_text.v1"] = "tokenize_text.v1"
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = Field(default=None, max_length=MESSAGES_MAX)
    tools: tuple[dict[str, WireJson], ...] = Field(default=(), max_length=TOOLS_MAX)
    add_special_tokens: bool | None = Field(
        default=None, description="None: as in a submission, with a prompt but not with messages"
    )
    add_generation_prompt: bool = Field(
        default=True, description="with messages: end with the opening of the answer"
    )
    with_token_texts: bool = False

    @model_validator(mode="after")
    def _has_one_prompt(self) -> "TokenizeText":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.tools and self.messages is None:
            raise ValueError("tools go with messages only")
        return self


class DetokenizeIds(Message):
    """Asks for the text of these token ids.

    Sent by a client, with a reply subject, to `text(alias)`. Handled by one router of the queue
    group. Lost: the client asks again. Doubled: answered again.
    """

    type: Literal["detokenize_ids.v1"] = "detokenize_ids.v1"
    token_ids: tuple[TokenId, ...]


class TextTokenized(Message):
    """The token ids.

    Sent by a router to the client, in answer to TokenizeText. Lost: asked again.
    """

    type: Literal["text_tokenized.v1"] = "text_tokenized.v1"
    token_ids: tuple[TokenId, ...]
    token_texts: tuple[str, ...] = Field(
        default=(), description="each token as the vocabulary has it, where asked for"
    )


class IdsDetokenized(Message):
    """The text.

    Sent by a router to the client, in answer to DetokenizeIds. Lost: asked again.
    """

    type: Literal["ids_detokenized.v1"] = "ids_detokenized.v1"
    text: str


class TextRejected(Message):
    """The question cannot be answered.

    Sent by a router to the client, in place of an answer. Lost: asked again.
    """

    type: Literal["text_rejected.v1"] = "text_rejected.v1"
    reason: RejectReason
    message: str
    parameter: str | None = None


AboutText = TokenizeText | DetokenizeIds
TextAnswer = TextTokenized | IdsDetokenized | TextRejected

TEXT_QUESTIONS: Codec[AboutText] = Codec(Annotated[AboutText, Field(discriminator="type")])
TEXT_ANSWERS: Codec[TextAnswer] = Codec(Annotated[TextAnswer, Field(discriminator="type")])
