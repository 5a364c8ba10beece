"""Go templates for Ollama's TEMPLATE, one for each chat format that we know. Text only.

Held against the models' own Jinja templates, rendered by a Go text/template implementation, in
tests/clients/test_ollama_templates.py.
"""

# Go's text/template. Without tools it renders what Qwen2.5's Jinja renders for system, user and assistant, but for two
# things: no system message is made up where none is given, and an answer at the end stays open, to be continued.
# Ollama gives system messages twice, all in .System and each in .Messages; with tools the first is used.
# It takes the text after `if .ToolCalls` as the sign of a tool call in an answer, so nothing else may come first there.
CHATML_TEMPLATE = """\
{{- if .Messages }}
{{- if .Tools }}<|im_start|>system
{{ if .System }}{{ .System }}

{{ end }}# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{- range .Tools }}
{{ json . }}
{{- end }}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{{ end }}
{{- $previous := "" }}
{{- range $index, $message := .Messages }}
{{- $last := eq (len (slice $.Messages $index)) 1 }}
{{- if eq .Role "tool" }}
{{- if ne $previous "tool" }}<|im_start|>user{{ end }}
<tool_response>
{{ .Content }}
</tool_response>
{{- $next := "" }}
{{- range $at, $other := slice $.Messages $index }}{{ if eq $at 1 }}{{ $next = $other.Role }}{{ end }}{{ end }}
{{- if ne $next "tool" }}<|im_end|>
{{ end }}
{{- else if eq .Role "assistant" }}<|im_start|>assistant
{{- if or .Content (not .ToolCalls) }}
{{ .Content }}
{{- end }}
{{- if .ToolCalls }}
{{- range .ToolCalls }}
<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}
</tool_call>
{{- end }}
{{- end }}
{{- if not $last }}<|im_end|>
{{ end }}
{{- else if not (and $.Tools (eq .Role "system")) }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- $previous = .Role }}
{{- end }}
{{- else }}
{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}
{{- end }}"""


# Llama 3's own format; Ollama writes <|begin_of_text|> itself.
LLAMA3_TEMPLATE = """\
{{- range $index, $message := .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}<|start_header_id|>assistant<|end_header_id|>

"""

TEMPLATES = {"chatml": CHATML_TEMPLATE, "llama3": LLAMA3_TEMPLATE}
