// Command node holds the parts of a Kubernetes node: "node kubelet --help", "node kube-proxy --help".
//
// Role: the true kubelet and kube-proxy for the end-to-end tests, where no release can be downloaded.
//
// Boundary: no logic of its own. Both are upstream's, at the version in go.mod, which is the control
// plane's; it stays at v1.34, since later kubelets refuse cgroup v1. Only the chosen one's command is
// made, because they register global flags and feature gates.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"

	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) > 1 {
		part := os.Args[1]
		os.Args = append([]string{part}, os.Args[2:]...)
		switch part {
		case "kubelet":
			run(kubelet.NewKubeletCommand(context.Background()))
		case "kube-proxy":
			run(kubeproxy.NewProxyCommand())
		}
	}
	fmt.Fprintln(os.Stderr, "usage: node kubelet|kube-proxy [ARGUMENT...]")
	os.Exit(2)
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
