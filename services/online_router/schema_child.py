"""The process that tries schemas, so that a hostile one costs nobody else time or memory.

It reads lines of JSON from stdin and answers each on stdout:

    {alias: tokenizer, ..}           first; the tokenizers as JSON
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
    serialised = json.loads(sys.stdin.readline())
    vocabularies: dict[str, GrammarVocabulary] = {}
    for line in sys.stdin:
        alias, schema = json.loads(line)
        if alias not in vocabularies:
            vocabularies[alias] = GrammarVocabulary(serialised[alias])
        refusal = vocabularies[alias].refusal(schema)
        sys.stdout.write(json.dumps(refusal and refusal[:REFUSAL_CHARACTERS_MAX]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
