"""The process that tries schemas, so that a hostile one costs nobody else time or memory.

It reads lines of JSON from stdin and answers on stdout:

    {alias: tokenizer}                  a model's tokenizer as JSON; no answer
    [alias, schema]  ->  null | why the schema is refused

It ends with its input.
"""

import json
import resource
import sys
from typing import Final

from libs.engine.grammar import GrammarVocabulary
from libs.kernel.units import MIB

MEMORY_BYTES_MAX: Final = 2048 * MIB
"""Of address space; the process itself and a large vocabulary take a tenth."""
REFUSAL_CHARACTERS_MAX: Final = 500


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    vocabularies: dict[str, GrammarVocabulary] = {}
    for line in sys.stdin:
        match json.loads(line):
            case dict() as tokenizers:
                for alias, tokenizer in tokenizers.items():
                    vocabularies[alias] = GrammarVocabulary(tokenizer)
            case [alias, schema]:
                refusal = vocabularies[alias].refusal(schema)
                sys.stdout.write(json.dumps(refusal and refusal[:REFUSAL_CHARACTERS_MAX]) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
