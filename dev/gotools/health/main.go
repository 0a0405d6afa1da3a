// Command health says how Argo CD, Flux and kstatus judge objects, with the libraries that those use themselves:
//
//	health < QUESTIONS > ANSWERS
//
// Role: reads one JSON object a line, {"object": ..., "lua": "...", "flux": {"current": "...", "inProgress": "...",
// "failed": "..."}}, and answers each by a line, {"kstatus": "...", "argo": "...", "argoMessage": "...", "flux": "..."}.
// Where a tool is not asked (no lua, no flux) its answer is empty; where it fails, the answer is "error: ...".
//
// Boundary: judges what it is given, and asks no cluster. Lua has the libraries that Argo CD opens for a health check
// (base, table, package: no string, no io), and CEL the options with which Flux compiles health check expressions, in
// the order of its RFC 0009: observedGeneration, inProgress, failed, current.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/ext"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

const lineBytesMax = 4 << 20

type question struct {
	Object json.RawMessage `json:"object"`
	Lua    string          `json:"lua"`
	Flux   *expressions    `json:"flux"`
}

type expressions struct {
	Current    string `json:"current"`
	InProgress string `json:"inProgress"`
	Failed     string `json:"failed"`
}

type answer struct {
	Kstatus     string `json:"kstatus"`
	Argo        string `json:"argo"`
	ArgoMessage string `json:"argoMessage"`
	Flux        string `json:"flux"`
}

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "usage: health < QUESTIONS > ANSWERS: one JSON object a line, see its source")
		os.Exit(2)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytesMax)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		said, err := judge(lines.Bytes())
		if err == nil {
			err = out.Encode(said)
		}
		fail(err)
	}
	fail(lines.Err())
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "health:", err)
		os.Exit(1)
	}
}

func judge(line []byte) (*answer, error) {
	asked := question{}
	if err := json.Unmarshal(line, &asked); err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(asked.Object); err != nil {
		return nil, err
	}
	said := &answer{}
	if found, err := status.Compute(object); err != nil {
		said.Kstatus = "error: " + err.Error()
	} else {
		said.Kstatus = found.Status.String()
	}
	if asked.Lua != "" {
		said.Argo, said.ArgoMessage = argo(asked.Lua, object)
	}
	if asked.Flux != nil {
		said.Flux = flux(asked.Flux, object)
	}
	return said, nil
}

// argo runs a health check: a Lua chunk that has the object as `obj` and returns a table with status and message.
func argo(script string, object *unstructured.Unstructured) (string, string) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return "error: " + err.Error(), ""
		}
	}
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return "error: " + err.Error(), ""
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "error: no table was returned", ""
	}
	return lua.LVAsString(table.RawGetString("status")), lua.LVAsString(table.RawGetString("message"))
}

func value(state *lua.LState, from any) lua.LValue {
	switch found := from.(type) {
	case bool:
		return lua.LBool(found)
	case int64:
		return lua.LNumber(found)
	case float64:
		return lua.LNumber(found)
	case string:
		return lua.LString(found)
	case []any:
		table := state.NewTable()
		for _, each := range found {
			table.Append(value(state, each))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, each := range found {
			table.RawSetString(key, value(state, each))
		}
		return table
	}
	return lua.LNil
}

func flux(asked *expressions, object *unstructured.Unstructured) string {
	seen, there, err := unstructured.NestedInt64(object.Object, "status", "observedGeneration")
	if err != nil {
		return "error: " + err.Error()
	}
	if there && seen != object.GetGeneration() {
		return status.InProgressStatus.String()
	}
	for _, each := range []struct {
		expression string
		means      status.Status
	}{
		{asked.InProgress, status.InProgressStatus},
		{asked.Failed, status.FailedStatus},
		{asked.Current, status.CurrentStatus},
	} {
		holds, err := evaluate(each.expression, object.Object)
		if err != nil {
			return "error: " + err.Error()
		}
		if holds {
			return each.means.String()
		}
	}
	return status.InProgressStatus.String()
}

func evaluate(expression string, object map[string]any) (bool, error) {
	environment, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true), cel.OptionalTypes(), ext.Strings(), ext.Sets(), ext.Encoders(),
	)
	if err != nil {
		return false, err
	}
	parsed, issues := environment.Parse(expression)
	if issues.Err() != nil {
		return false, issues.Err()
	}
	program, err := environment.Program(parsed, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return false, err
	}
	found, _, err := program.Eval(object)
	if err != nil {
		return false, err
	}
	holds, ok := found.(types.Bool)
	if !ok {
		return false, fmt.Errorf("%q is no boolean", expression)
	}
	return bool(holds), nil
}
