"""From a parsed request to what is published for it and how its answer is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from libs.client.answers import Usage
from libs.contracts.online import SubmitRequest
from libs.openai_api import chat, completions
from libs.openai_api.answer_form import AnswerForm, AnswerHead, Prompt, Shown
from libs.openai_api.choices import choices_of
from libs.openai_api.forced_tools import forced_tools
from libs.openai_api.schemas import ChatRequest, CompletionRequest
from libs.openai_api.text_questions import TextQuestions


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a caller asked for, in the fleet's words, and how the answer is to look."""

    model: str
    submissions: Sequence[SubmitRequest]
    """One for each choice, by index."""
    answers_per_prompt: int
    form: AnswerForm
    prompt_parameter: str
    """What this endpoint calls its prompt."""
    shows_answer: bool = True

    def usage(self, *, prompt_tokens: Sequence[int], completion_tokens: int) -> Usage:
        """Return what the answer took; `prompt_tokens` has one entry for each choice.

        Each prompt counts once, however many answers it has.
        """
        return Usage(
            prompt_tokens=sum(prompt_tokens[:: self.answers_per_prompt]),
            completion_tokens=completion_tokens if self.shows_answer else 0,
        )

    def on_behalf_of(self, tenant: str) -> "Order":
        """Return the order with its sessions counted as this tenant's."""
        submissions = [one.model_copy(update={"tenant": tenant}) for one in self.submissions]
        return replace(self, submissions=submissions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Makes orders. `text` is asked where an answer shows what only a tokenizer knows."""

    text: TextQuestions
    expires_after_ms: int

    async def order(
        self,
        asked: ChatRequest | CompletionRequest,
        *,
        request_id: str,
        created_at_unix_s: int,
    ) -> Order:
        """Return the order for this request. Raises: ApiError that names the field."""
        if isinstance(asked, ChatRequest):
            return await self._chat(asked, request_id, created_at_unix_s)
        return await self._completion(asked, request_id, created_at_unix_s)

    async def _chat(self, asked: ChatRequest, request_id: str, created_at_unix_s: int) -> Order:
        submission = chat.chat_submission(
            asked, request_id=request_id, expires_after_ms=self.expires_after_ms
        )
        if asked.return_token_ids:
            submission = await self.text.with_token_ids(
                submission, model=asked.model, prompt_parameter=chat.PROMPT_PARAMETER
            )
        answers = asked.n or 1
        form = chat.ChatForm(
            AnswerHead(
                answer_id=chat.ANSWER_ID_PREFIX + request_id,
                created_at_unix_s=created_at_unix_s,
                model=asked.model,
            ),
            choices=answers,
            shown=Shown(logprobs=bool(asked.logprobs), token_ids=bool(asked.return_token_ids)),
            prompt=Prompt(token_ids=submission.prompt_token_ids or ()),
            tools=forced_tools(asked.tools, asked.tool_choice),
        )
        return Order(
            model=asked.model,
            submissions=choices_of([submission], answers=answers),
            answers_per_prompt=answers,
            form=form,
            prompt_parameter=chat.PROMPT_PARAMETER,
        )

    async def _completion(
        self, asked: CompletionRequest, request_id: str, created_at_unix_s: int
    ) -> Order:
        submissions = completions.completion_submissions(
            asked, request_id=request_id, expires_after_ms=self.expires_after_ms
        )
        answers = asked.n or 1
        prompts = []
        for number, submission in enumerate(submissions):
            submissions[number], prompt = await self._shown_prompt(asked, submission)
            prompts += [prompt] * answers
        shows_answer = asked.max_tokens != 0
        form = completions.CompletionForm(
            AnswerHead(
                answer_id=completions.ANSWER_ID_PREFIX + request_id,
                created_at_unix_s=created_at_unix_s,
                model=asked.model,
            ),
            prompts=prompts,
            shown=Shown(
                logprobs=asked.logprobs is not None,
                token_ids=bool(asked.return_token_ids),
                answer=shows_answer,
            ),
        )
        return Order(
            model=asked.model,
            submissions=choices_of(submissions, answers=answers),
            answers_per_prompt=answers,
            form=form,
            prompt_parameter=completions.PROMPT_PARAMETER,
            shows_answer=shows_answer,
        )

    async def _shown_prompt(
        self, asked: CompletionRequest, submission: SubmitRequest
    ) -> tuple[SubmitRequest, Prompt]:
        """Return the submission to publish, and what the answer repeats of its prompt."""
        parameter = completions.PROMPT_PARAMETER
        echo = ""
        if asked.echo:
            echo = submission.prompt or await self.text.text_of(
                submission.prompt_token_ids or (), model=asked.model, prompt_parameter=parameter
            )
        if asked.return_token_ids:
            submission = await self.text.with_token_ids(
                submission, model=asked.model, prompt_parameter=parameter
            )
        return submission, Prompt(
            echo=echo,
            is_scored=completions.is_scored(asked),
            token_ids=submission.prompt_token_ids or (),
        )
