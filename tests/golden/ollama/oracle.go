// The other side of the Modelfile: Ollama's parser and Go's text/template, for make_golden.py.
//
// Reads cases as JSON from stdin, writes what Ollama makes of them to stdout. Build it inside a checkout of Ollama, whose
// parser package it imports:
//
//	mkdir oracle && cp …/oracle.go oracle/ && go build -o oracle-program ./oracle
//
// The chats are collated as Ollama's template package does it: neighbours of one role are joined by an empty line.
package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"text/template"

	"github.com/ollama/ollama/parser"
)

type Call struct {
	Function struct {
		Name      string
		Arguments map[string]any
	}
}
type Message struct {
	Role, Content string
	ToolCalls     []Call `json:"tool_calls"`
}
type Input struct {
	Modelfiles []string
	Template   string
	Chats      []struct {
		Messages []Message
		Tools    []any
	}
	Prompts []map[string]any
}

func main() {
	var in Input
	data, _ := io.ReadAll(os.Stdin)
	if err := json.Unmarshal(data, &in); err != nil {
		panic(err)
	}
	out := map[string]any{}
	var parsed []any
	for _, text := range in.Modelfiles {
		f, err := parser.ParseFile(strings.NewReader(text))
		if err != nil {
			parsed = append(parsed, err.Error())
			continue
		}
		var commands [][2]string
		for _, c := range f.Commands {
			commands = append(commands, [2]string{c.Name, c.Args})
		}
		parsed = append(parsed, commands)
	}
	out["modelfiles"] = parsed
	t := template.Must(template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": func(v any) string {
		b, _ := json.Marshal(v)
		return string(b)
	}}).Parse(in.Template))
	var rendered []string
	run := func(v map[string]any) {
		var b bytes.Buffer
		if err := t.Execute(&b, v); err != nil {
			panic(err)
		}
		rendered = append(rendered, b.String())
	}
	for _, chat := range in.Chats {
		var system []string
		var collated []*Message
		for i := range chat.Messages {
			m := &chat.Messages[i]
			if m.Role == "system" {
				system = append(system, m.Content)
			}
			if n := len(collated); n > 0 && collated[n-1].Role == m.Role && m.Role != "tool" {
				collated[n-1].Content += "\n\n" + m.Content
			} else {
				collated = append(collated, m)
			}
		}
		run(map[string]any{"System": strings.Join(system, "\n\n"), "Messages": collated, "Tools": chat.Tools, "Response": ""})
	}
	for _, p := range in.Prompts {
		run(p)
	}
	out["rendered"] = rendered
	e := json.NewEncoder(os.Stdout)
	e.SetEscapeHTML(false)
	e.Encode(out)
}
