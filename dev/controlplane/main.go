// Command controlplane is a real Kubernetes control plane in one binary.
//
// Role: it gives Almoner's tests, its demo and its developers the true etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler and kubectl where no release can be downloaded. The
// component is chosen by the name the binary is called by (a symbolic link), or by the first
// argument: "controlplane kube-apiserver --help".
//
// Boundary: no logic of its own. The components are upstream's, at the version in go.mod, and only
// the chosen one's command is made, because they register global flags and feature gates.
//
// A node's parts can be added in the same way when they are needed (about 40 s more to build):
// import k8s.io/kubernetes/cmd/kubelet/app and k8s.io/kubernetes/cmd/kube-proxy/app, add
//
//	"kubelet":    func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
//	"kube-proxy": kubeproxy.NewProxyCommand,
//
// to components, run "go mod tidy", and add the names to COMPONENTS in almoner_dev/binaries.py.
// Stay on v1.34 for a kubelet where cgroup v1 is in use: later ones refuse it.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	_ "time/tzdata" // CronJob time zones on machines without a zone database.

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"

	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

func main() {
	args := os.Args
	name := filepath.Base(args[0])
	if !known(name) && len(args) > 1 {
		args = args[1:]
		name = filepath.Base(args[0])
	}
	if !known(name) {
		fmt.Fprintf(os.Stderr, "usage: controlplane COMPONENT [ARGUMENT...]\nCOMPONENT is one of: %s\n",
			strings.Join(names(), ", "))
		os.Exit(2)
	}
	// kubectl and etcd read os.Args themselves, and cobra falls back on it.
	os.Args = append([]string{name}, args[1:]...)
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kubectl":
		if err := cli.RunNoErrOutput(components[name]()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		os.Exit(cli.Run(components[name]()))
	}
}

func known(name string) bool {
	_, ok := components[name]
	return ok || name == "etcd"
}

func names() []string {
	all := []string{"etcd"}
	for name := range components {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}
