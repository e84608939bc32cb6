"What each generative twin is asked, written from the documentation of its model: nothing of the package's own prompts."

from vlm_counting.models import INSTRUCTION

TEXT_FIRST = {"tiny-llava-next-interleave", "tiny-llava-onevision"}


def prompt_of(name: str, processor, question: str) -> str:
    if name == "tiny-paligemma2":
        return f"<image> answer en {INSTRUCTION} {question}"
    content = [{"type": "image"}, {"type": "text", "text": f"{INSTRUCTION} {question}"}]
    if name in TEXT_FIRST:
        content.reverse()
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
